"""The error that becomes a sentence on the page or the terminal."""


class InputError(ValueError):
    """An upload, flag or variable cannot be used; the message names it and says what to do."""

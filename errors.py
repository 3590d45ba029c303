"""The one error that commands turn into a sentence and exit code 2."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names it and says what to do."""

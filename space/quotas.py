"""Every limit of the app, in one place."""

MAX_FILE_BYTES = 20_000_000
MAX_IMAGE_PIXELS = 50_000_000  # read from the header, before anything is decoded
MIN_IMAGE_SIDE = 8  # pixels

MAX_IMAGES_PER_REQUEST = 32
MAX_IMAGES_PER_MINUTE = 96  # per client
MAX_UPLOADS_PER_MINUTE = 60  # upload requests per client, each of any number of files
MAX_CLIENTS = 1_000  # with an account in a rate limiter; those seen longest ago are dropped

MAX_REQUEST_BYTES = 1_000_000  # of any request that is not an upload
MAX_STORED_BYTES = 2_000_000_000  # of all uploads together
MAX_QUEUED_REQUESTS = 32  # of all clients
ANSWER_SECONDS = 120  # for which the answers of a client that does not read them are kept
MAX_SESSIONS = 100  # whose labelled sets are remembered
MAX_ANALYTICS_EVENTS = 100  # that Gradio summarises after each request; it keeps 10,000 by default

MAX_LABELLED_ROWS = 100_000
MAX_EXAMPLES = 12

UPLOAD_SECONDS = 600  # age at which Gradio deletes an upload
LEFTOVER_SECONDS = 660  # age at which this app deletes what Gradio has left
SWEEP_SECONDS = 10  # between two deletions

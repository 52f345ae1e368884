"""`python3 -m greenlight_service` serves."""

import signal
import sys

# As a container's first process Python ignores SIGTERM until a handler is set, and the imports below take time.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

from greenlight_service.server import main  # noqa: E402 - after the handler, on purpose

main()

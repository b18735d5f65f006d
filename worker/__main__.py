"""`python -m worker` is `payment-worker`."""

import sys

from worker.cli import main

sys.exit(main())

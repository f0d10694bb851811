"""`python -m dragsa` is `dragsa`."""

import sys

from dragsa.cli import main

sys.exit(main())

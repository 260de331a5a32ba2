"""``python -m advnas``: the command line."""

import sys

from advnas.cli import main

sys.exit(main())

"""``python -m precast`` is the ``precast`` command."""

import sys

from precast.cli import main

sys.exit(main())

"""`python -m speechssl <verb> …`, the same as the command `speechssl`."""

from __future__ import annotations

import sys

from speechssl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

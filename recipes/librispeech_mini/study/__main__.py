"""`python -m recipes.librispeech_mini.study`: the same command as `run`."""

import sys

from recipes.librispeech_mini.study.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m spineps``."""

from spineps.cli.main import main

if __name__ == "__main__":
    main()

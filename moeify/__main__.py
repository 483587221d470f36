"""``python -m moeify``."""

from moeify.cli.app import main

if __name__ == "__main__":
    main()

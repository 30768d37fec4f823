"""`python -m kstream_agg` is the `kstream-agg` command."""

from kstream_agg.cli.main import main

if __name__ == "__main__":
    main()

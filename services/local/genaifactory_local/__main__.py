"""`python -m genaifactory_local`: the command line."""

from genaifactory_local.cli import main

if __name__ == "__main__":
    main()

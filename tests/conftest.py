"""What every test gets: the platform's own fixtures, and Ctrl-C that works."""

import signal

pytest_plugins = ["genaifactory_common.testing"]

# Started in a shell's background, the tests and all that they start would ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

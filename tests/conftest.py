"""What every test gets: the platform's own fixtures."""

pytest_plugins = ["genaifactory_common.testing"]

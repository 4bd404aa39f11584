"""All six services in one process, and the genaifactory command line."""

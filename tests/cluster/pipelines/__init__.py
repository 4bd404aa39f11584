"""Tests of one installation: a package, so that it ends when they do."""

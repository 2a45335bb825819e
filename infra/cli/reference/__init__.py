"""The reference pages of docs/, generated from the code they describe: `make docs-reference`.

A page that is out of date fails tests/infra/cli/reference/test_pages.py.
"""

"""The operation graph that all passes work on, what its operations cost, and what memory they hold."""

"""The sections of a configuration, a module for each; engines have theirs in one."""

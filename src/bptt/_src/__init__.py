"""What ``bptt`` is made of. Private: the modules beside this package are the interface."""

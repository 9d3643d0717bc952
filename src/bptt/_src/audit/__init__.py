"""What credit training code computes, and what its state remembers, whoever wrote the code.

Nothing of the user's is replaced. Each call of the module is recorded, hooks hear which gradients
arrive at its outputs and its states in the user's own backward passes, and the credit matrix is put
together from that.
"""

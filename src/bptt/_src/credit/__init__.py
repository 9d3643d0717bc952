"""How far back a loss is credited: plans, and the credits that make them. No tensors in a plan."""

"""The ledger but for its SQL: the chain, signed checkpoints, what is checked, settings, plain allows."""

"""The ledger: what is known of every payment. SQL is here and nowhere else."""

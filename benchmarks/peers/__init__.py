"""The contestants of bench_hypergradient: one set of problems, solved by each in its own way."""

"""The rows of table 1: towers, and the paper's numbers beside them."""

from paper import adagrad, adam, rmsprop, sgd

# table, row, optimizer; test error of the paper, its rerun; what it learned
alone = {"alone": True}
ROWS = [
    ("1a", "SGD", sgd(), 8.99),
    ("1a", "SGD by SGD", sgd(by=sgd()), 4.81, 5.44, {"learning_rate": 0.0769}),
    ("1a", "SGD by Adam(.1)", sgd(by=adam(0.1)), 4.86, 2.80, {"learning_rate": 0.4538}),
    ("1a", "SGD by AdaGrad", sgd(by=adagrad()), 4.85, 5.17, {"learning_rate": 0.0836}),
    ("1a", "SGD by RMSProp(.1)", sgd(by=rmsprop(0.1)), 4.52, 2.52, {"learning_rate": 0.5920}),
    ("1b", "Adam", adam(), 4.67),
    ("1b", "Adam by SGD(1e-5)", adam(by=sgd(1e-5)), 3.03, 3.11,
     {"learning_rate": 0.0040, "b1": 0.899, "b2": 0.999}),
    ("1b", "Adam alpha by SGD(1e-5)", adam(by=sgd(1e-5), **alone), 3.12, 3.47,
     {"learning_rate": 0.0021}),
    ("1b", "Adam by Adam", adam(by=adam()), 3.05, 3.24,
     {"learning_rate": 0.0038, "b1": 0.870, "b2": 0.999}),
    ("1b", "Adam alpha by Adam", adam(by=adam(), **alone), 3.04, 3.08, {"learning_rate": 0.0036}),
    ("1c", "AdaGrad", adagrad(), 7.40),
    ("1c", "AdaGrad by SGD", adagrad(by=sgd()), 6.90, 7.75, {"learning_rate": 0.0080}),
    ("1c", "AdaGrad by AdaGrad", adagrad(by=adagrad()), 5.03, 6.67, {"learning_rate": 0.0151}),
    ("1d", "RMSProp", rmsprop(), 4.19),
    ("1d", "RMSProp alpha by SGD(1e-4)", rmsprop(by=sgd(1e-4), **alone), 3.55, 3.93,
     {"learning_rate": 0.0030}),
    ("1d", "RMSProp by SGD(1e-4)", rmsprop(by=sgd(1e-4)), 3.33, 3.25,
     {"learning_rate": 0.0032, "decay": 0.9899}),
    ("1d", "RMSProp alpha by RMSProp(1e-4)", rmsprop(by=rmsprop(1e-4), **alone), 3.42, 3.60,
     {"learning_rate": 0.0021}),
    ("1d", "RMSProp by RMSProp(1e-4)", rmsprop(by=rmsprop(1e-4)), 2.96, 3.65,
     {"learning_rate": 0.0020, "decay": 0.9962}),
]  # fmt: skip


def paper_numbers():
    """What -> (the paper's number, the key of ours in the record)."""
    found = {}
    for table, name, _, number, *more in ROWS:
        found[f"{table} {name}, test error (%)"] = (number, f"{table}/{name}/error")
        if more:
            again, learned = more
            found[f"{table} {name}, with what it learned"] = (again, f"{table}/{name}/again")
            for k, x in learned.items():
                found[f"{table} {name}, learned {k}"] = (x, f"{table}/{name}/{k}")
    return found

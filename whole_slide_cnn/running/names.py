"""Names of files in a result folder."""

BEST, LAST, WEIGHTS, LOG = "best.npz", "last.npz", "best.h5", "log.csv"
CURVES = "learning_curves.png"
SCALARS = "tensorboard"

"""From a finished run to a checkpoint that ships: the best snapshot, its scores, its audit, its pictures, its card."""

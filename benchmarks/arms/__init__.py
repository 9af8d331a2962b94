"""Stage: benchmarks, in a player. One module for each engine that is measured, named for it.

Each has `ARM`, a subclass of `base.Arm`, and imports its engine when the arm is made.
"""

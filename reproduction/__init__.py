"""Train and test the networks of this book on CIFAR-100: ``train.py``, ``test.py``.

networks      names, what they build, and where each form departs from its paper
data          CIFAR-100 and two small sets that need no network; split, augmentation
checkpoints   files that survive a kill, results
definitions   what a notebook defines, without running it
"""

"""What a run has learnt: one module for each command of `python -m domainbed` that looks at runs.

Each module has one function that does all of it, writes its pictures into a folder and returns its figures as plain
data, so that `report` can call what the command line calls:

    run = open_run("results/train_output/DR/full_training", target="idrid")
    found = latents.analyse(run, run.folder_for("latents"))       # {"pictures": [{"file", "title", "caption"}, …], …}

`opened` gives a run back with its model and its images, `recorded` what it wrote down, `plots` how a figure looks. The
other modules are parts of a command, or shared by two: `codes` of latents and traverse, `network` and `layer_pictures`
of layers, `calibration` of errors, `photograph` and `duplicates` of explore.
Nothing here trains the model of a run, and nothing changes its folder but for `analysis/` in it.
"""

#: Which images of a run are looked at: those that no weight was fitted to, those that it was fitted to, or both.
CHOICES = ("held-out", "train", "all")

"""Tables and a page from the results of runs, beside the papers' numbers.

Reads results only and never imports torch.

`collect` reads the run folders, `published` the papers' numbers, `stats` summarises and compares
cells, `tables` puts the pieces into `blocks`, and `text` and `page` write the blocks as Markdown,
CSV, LaTeX and HTML.
"""

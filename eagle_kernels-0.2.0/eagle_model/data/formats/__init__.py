"""Data sets as other trainers and hubs lay them out, read as the rows that `rows.parse_sample` takes.

    for data_set in open_data(Path("downloads/the_cauldron")):       # opening.py: which reader, by what lies there
        for where, row in data_set.rows(): ...                       # one after the other, in bounded memory

A reader knows one container (tables.py, tars.py, folders.py, ...) and gives its records; records.py makes a row of any
record, whoever wrote it. Media inside a container are Embedded bytes until `convert` writes them to files.
"""

"""The claims of Eagle 2.5's paper, repeated in small: signs to read in films and pages, a model that learns in
minutes.

python -m examples.paper_in_small --work /tmp/paper --out bench/results/paper-in-small-cpu.json
"""

"""The whole pipeline on one machine: `python -m demo` runs it once, `python -m demo.up` lets one click through it."""

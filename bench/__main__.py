"""``python -m bench compile_time``."""

from __future__ import annotations

import argparse

from bench import compile_time


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("name", choices=["compile_time"])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; the median is reported (default 3)")
    given = parser.parse_args()
    compile_time.main(given.rounds)


if __name__ == "__main__":
    main()

"""The programs here need atheris and run by themselves."""

collect_ignore_glob = ["fuzz_*.py"]

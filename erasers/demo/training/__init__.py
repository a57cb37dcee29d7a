"""How the demo world's weights were made: `python -m lethe.erasers.demo.training --help`."""

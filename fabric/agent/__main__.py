"""Entry of `python -m fabric.agent`, which the supervisor starts."""

from fabric.agent.main import main

main()

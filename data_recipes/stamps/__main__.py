"""``python -m data_recipes.stamps``."""

from data_recipes.stamps.pretraining import main

main()

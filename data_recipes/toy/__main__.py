"""``python -m data_recipes.toy``."""

from data_recipes.toy.pretraining import main

main()

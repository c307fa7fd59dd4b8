"""`python -m sat_models.zoo` and the console command `sat-zoo`: the zoo as a table."""

from sat_models.zoo.table import command

if __name__ == "__main__":
    command()

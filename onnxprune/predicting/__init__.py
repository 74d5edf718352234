"""How long a cut network will take: a model of times, fitted to some that were measured."""

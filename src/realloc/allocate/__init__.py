"""How many units each site gets: exact integers under least and most."""

"""How many compute together: the strategies, and how their ranks are started."""

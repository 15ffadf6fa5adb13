"""The jobs world: synthetic members, jobs and a funnel down to hires, with a known truth of who qualifies for what."""

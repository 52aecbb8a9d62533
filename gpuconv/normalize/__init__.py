"""From what a user wrote to canonical tuples and a problem, or an error; entered by functional, ops and dispatch."""

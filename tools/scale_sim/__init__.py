"""`make scale-sim`: KEDA's and the HPA's formulas over real local workers, under a bursty load, every turn counted."""

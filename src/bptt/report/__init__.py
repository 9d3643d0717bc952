"""Pictures of what was computed elsewhere: nothing here computes, only this loads matplotlib."""

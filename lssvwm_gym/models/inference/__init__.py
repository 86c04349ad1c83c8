"""The models as a dream runs them: weights laid out for one frame, compiled steps, the choice of a backend."""

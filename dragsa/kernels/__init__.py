"""What makes the method fast, in torch and in Triton alone: nothing here knows a network or an edit."""

"""What a trained reward model is for: choosing, voting, filtering and steering."""
